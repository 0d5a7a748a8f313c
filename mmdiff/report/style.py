"""How every page looks in light and dark, on a desk and on a phone, and the one script that it may run."""
import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --bg:#fbfbfa; --card:#fff; --ink:#1c2024; --soft:#60646c; --line:#e3e4e8; --good:#18794e; --bad:#c62a2f;
  --c0:#3e63dd; --c1:#d6630c; --c2:#1a8a5f; --c3:#a144af; --c4:#0588a6; --c5:#8d6e1f }
@media (prefers-color-scheme: dark) { :root { --bg:#121315; --card:#1a1c1f; --ink:#edeef0; --soft:#9ba1a8; --line:#2e3237;
  --good:#4cc38a; --bad:#ff6369; --c0:#849dff; --c1:#ff9f4d; --c2:#4cc38a; --c3:#d19dff; --c4:#4ccce6; --c5:#e2c264 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: break-word }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px }
h1 { font-size: 26px; margin: 0 0 2px }
h2 { font-size: 21px; margin: 44px 0 4px; padding-top: 18px; border-top: 2px solid var(--line) }
h3 { font-size: 16px; margin: 30px 0 8px }
h4 { font-size: 14px; margin: 18px 0 6px }
p { margin: 4px 0; max-width: 80ch }
.goal { font-size: 17px; margin: 8px 0 }
.soft, small { color: var(--soft); font-weight: 400 }
code { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere }
a { color: var(--c0) }
nav a { margin-right: 16px }
.tiles, .charts, .cards { display: grid; gap: 12px; margin: 14px 0 }
.tiles { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) }
.scores { grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)) }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)) }
.cards { grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)) }
.tile, .chart, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 0; padding: 10px 12px;
  min-width: 0 }
.tile b { display: block; font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums }
.tile span, .tile p { color: var(--soft); font-size: 13px; margin: 2px 0 }
.card { padding: 6px; font-size: 12px; line-height: 1.35 }
.card img, .sheet img { width: 100%; display: block; border-radius: 4px; margin-bottom: 5px }
.shots { display: grid; gap: 14px; margin: 14px 0; grid-template-columns: repeat(auto-fill, minmax(min(256px, 100%), 1fr)) }
.shots:has(.few) { grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)) }
.side { display: flex; gap: 6px }
.side > div { flex: 1 1 0; min-width: 0 }
.shot small { white-space: pre-line }
.shot img { height: auto; max-height: 384px; object-fit: contain }
.shot:has(.side > div + div) { grid-column: span 2 }
img.pixels { image-rendering: pixelated }
.sheet { max-width: 560px; margin: 12px 0 }
.strip { display: flex; gap: 6px; margin-bottom: 6px }
.strip figure { margin: 0; flex: 1 1 0; min-width: 0; max-width: 160px; color: var(--soft) }
.yes { color: var(--good) }
.no, .key.bad { color: var(--bad) }
.changed { color: var(--c1) }
.big { margin: 14px 0 }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 13px; margin-bottom: 6px }
.chart figcaption > b { margin-right: auto; font-weight: 600 }
.chart label { color: var(--soft); white-space: nowrap }
.chart input { margin: 0 4px 0 0; vertical-align: -2px }
.chart output { display: block; text-align: center; font-size: 12px; color: var(--soft); min-height: 1.5em;
  font-variant-numeric: tabular-nums }
.plot { display: grid; grid-template-columns: var(--w) 1fr; gap: 4px 8px; font-size: 11px; color: var(--soft); padding-right: 12px;
  font-variant-numeric: tabular-nums }
.ys, .xs, .area { position: relative }
.ys span { position: absolute; right: 0; transform: translateY(-50%); white-space: nowrap }
.area { height: 150px; touch-action: pan-y }
.big .area { height: 300px }
.area svg { width: 100%; height: 100%; display: block; overflow: visible }
.area path, .area polyline { vector-effect: non-scaling-stroke }
.at { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1px solid var(--soft); display: none }
.xs { grid-column: 2; height: 15px }
.xs span { position: absolute; transform: translateX(-50%) }
.key i { display: inline-block; width: 9px; height: 9px; border-radius: 5px; margin-right: 3px }
.key.again { color: var(--soft) }
.chart:has(input:checked) .lin, .chart:has(input:not(:checked)) .log { display: none }
@supports not selector(:has(a)) { .log { display: none } }
.grid { stroke: var(--line) }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round }
.raw { opacity: .3; stroke-width: 1 }
.d1 { stroke-dasharray: 9 5 }
.d2 { stroke-dasharray: 3 4 }
.dot { stroke-width: 5; stroke-linecap: round }
path.bad { stroke: var(--bad); opacity: .7 }
path.again { stroke: var(--soft); stroke-dasharray: 4 4 }
.wide { overflow-x: auto }
.tables { display: flex; flex-wrap: wrap; gap: 0 48px }
.tables > .wide { max-width: 100% }
table { border-collapse: collapse; margin-bottom: 12px; font-size: 14px; font-variant-numeric: tabular-nums }
th { text-align: left; color: var(--soft); font-weight: 500; white-space: nowrap }
td, th { padding: 4px 18px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; max-width: 60ch }
td code { overflow-wrap: break-word }
.n, th.n { text-align: right; white-space: nowrap }
.w { white-space: nowrap }
.l { min-width: 24ch }
.bar { width: 120px; height: 14px; vertical-align: middle; margin-right: 8px }
.bar .track { fill: var(--line) }
.bar .fill { fill: var(--c0) }
.bar line { stroke: var(--ink); stroke-width: 1.4 }
.forest { width: 200px; height: 16px; vertical-align: middle }
.forest line { stroke-width: 2 }
.forest .zero { stroke: var(--soft); stroke-width: 1 }
.sure { stroke: var(--c0); fill: var(--c0) }
.pale { stroke: var(--soft); fill: var(--card) }
details { margin: 12px 0 }
summary { cursor: pointer; color: var(--soft) }
@media (max-width: 600px) { main { padding: 16px 12px 40px } .big .area { height: 200px } .tile b { font-size: 18px }
  .tiles, .cards { grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)) } .shots { grid-template-columns: 1fr 1fr; gap: 8px }
  .scores { grid-template-columns: 1fr } }
""" + "".join(f".c{i} {{ stroke: var(--c{i}) }} .k{i} {{ background: var(--c{i}) }}\n" for i in range(6))

# The values under the pointer, of the nearest step that any line of a chart has; the lines are in `data-lines` (`charts.hover`).
SCRIPT = """
for (const chart of document.querySelectorAll('figure.chart')) {
  const svg = chart.querySelector('svg[data-lines]'), out = chart.querySelector('output'), at = chart.querySelector('.at')
  if (!svg || !out || !at) continue
  const lines = JSON.parse(svg.dataset.lines), share = 'share' in svg.dataset, all = lines.flatMap(line => line[1])
  const first = Math.min(...all), last = Math.max(...all)
  const near = (xs, x) => { let i = 0; xs.forEach((v, j) => { if (Math.abs(v - x) < Math.abs(xs[i] - x)) i = j }); return i }
  const say = v => share ? (100 * v).toPrecision(3) + ' %' : Number(v.toPrecision(4)).toLocaleString('en', {maximumSignificantDigits: 4})
  const show = event => {
    const box = svg.getBoundingClientRect(), x = first + (last - first) * (event.clientX - box.left) / box.width
    const step = all[near(all, x)], parts = ['step ' + step.toLocaleString('en')]
    for (const [name, xs, ys, low, high] of lines) {
      const i = near(xs, step), range = low && low[i] < high[i] ? ` (${say(low[i])} to ${say(high[i])})` : ''
      parts.push((lines.length > 1 ? name + ' ' : '') + say(ys[i]) + range)
    }
    out.textContent = parts.join(' · ')
    at.style.left = 100 * (step - first) / (last - first) + '%'
    at.style.display = 'block'
  }
  svg.addEventListener('pointermove', show)
  svg.addEventListener('pointerdown', show)
  svg.addEventListener('pointerleave', () => { out.textContent = 'step'; at.style.display = 'none' })
}
"""
# The browser runs and fetches nothing else, whatever a text might bring along.
POLICY = ("default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; script-src 'sha256-"
          + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode() + "'")
