import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdiff.convert import rules, tensors
from mmdiff.convert.rules import Rule
from mmdiff.core.errors import DataError

TABLE = (Rule("scale", "scale"), *rules.pair("head", "head"), *rules.pair("blocks.{n}.up", "stack/up", index="[n]"),
         Rule("blocks.{n}.qkv", tuple(f"stack/{part}/kernel[n]" for part in "qkv"), "fused"),
         Rule("stage{s}.{n}.conv", "stage{s}_{n}/kernel", "conv"), Rule("positions", "position", "rows"))


def leaves():
  rng = np.random.default_rng(0)
  shapes = {"scale": (), "head/kernel": (3, 5), "head/bias": (5,), "stack/up/kernel": (2, 3, 4), "stack/up/bias": (2, 4),
            "stack/q/kernel": (2, 3, 3), "stack/k/kernel": (2, 3, 3), "stack/v/kernel": (2, 3, 6), "stage1_0/kernel": (3, 3, 2, 4),
            "stage2_10/kernel": (1, 1, 4, 2), "position": (6, 3)}
  return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def bound(values):
  shapes = {path: value.shape for path, value in values.items()}
  return rules.bind(TABLE, shapes), shapes


def test_save_and_load_are_inverse_and_layouts_are_pytorchs():
  ours = leaves()
  bindings, shapes = bound(ours)
  theirs = rules.save(ours, bindings)
  assert set(theirs) == {"scale", "head.weight", "head.bias", "positions", "stage1.0.conv", "stage2.10.conv",
                         *(f"blocks.{n}.{name}" for n in (0, 1) for name in ("up.weight", "up.bias", "qkv"))}
  np.testing.assert_array_equal(theirs["blocks.1.up.weight"].read(), ours["stack/up/kernel"][1].T)
  np.testing.assert_array_equal(theirs["blocks.0.qkv"].read()[3:6], ours["stack/k/kernel"][0].T)
  assert theirs["stage1.0.conv"].shape == (4, 2, 3, 3) and theirs["blocks.0.qkv"].shape == (12, 3)
  found, report = rules.load(theirs, bindings, shapes, where="x")
  for path, value in ours.items():
    np.testing.assert_array_equal(found[path], value, err_msg=path)
  assert sorted(report.loaded) == sorted(theirs) and not any(report[1:])


@given(st.sampled_from(sorted(set(rules.KINDS) - {"fused", "fused_bias", "patch"})), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_every_layout_is_its_own_inverse(kind, sides):
  dims = {"linear": 2, "conv": 4, "conv1": 2, "vector": 0}.get(kind, 2)
  x = np.random.default_rng(0).normal(size=sides[:dims]).astype(np.float32)
  theirs = rules.KINDS[kind].save([x])
  assert theirs.shape == rules.KINDS[kind].shape([x.shape])
  np.testing.assert_array_equal(rules.KINDS[kind].load(theirs, [x.shape])[0], x)


def test_a_patch_kernel_is_a_convolution():
  kernel = np.random.default_rng(0).normal(size=(4 * 4 * 3, 5)).astype(np.float32)
  conv = rules.KINDS["patch"].save([kernel])
  assert conv.shape == rules.KINDS["patch"].shape([kernel.shape]) == (5, 3, 4, 4)
  assert conv[2, 1, 3, 0] == kernel[(3 * 4 + 0) * 3 + 1, 2]
  np.testing.assert_array_equal(rules.KINDS["patch"].load(conv, [kernel.shape])[0], kernel)


def edited(**changes):
  ours = leaves()
  bindings, shapes = bound(ours)
  theirs = {**rules.save(ours, bindings), **{name: tensors.of(value) for name, value in changes.items() if value is not None}}
  return {name: tensor for name, tensor in theirs.items() if changes.get(name, 0) is not None}, bindings, shapes


def test_what_is_wrong_is_named():
  with pytest.raises(DataError, match=r"there: 1 tensors are missing: scale; 1 tensors are unexpected: extra\. .*allow_missing"):
    rules.load(*edited(scale=None, extra=np.zeros(2)), where="there")
  with pytest.raises(DataError, match=r"1 tensors have another shape than the config says: head.bias \[4\], expected \[5\]"):
    rules.load(*edited(**{"head.bias": np.zeros(4, np.float32)}), where="there")
  with pytest.raises(DataError, match=r"positions \[5, 3\], expected \[6, 3\]"):
    rules.load(*edited(positions=np.zeros((5, 3), np.float32)), where="there")


def test_what_is_allowed_is_reported():
  found, report = rules.load(*edited(scale=None, extra=np.zeros(2), noise=np.zeros(1)), where="x", ignorable=[".*oise"],
                             allow_missing="scale|ex.*", initial=lambda: {"scale": np.float32(7)})
  assert (report.missing, report.unexpected, report.ignored) == (["scale"], ["extra"], ["noise"]) and found["scale"] == 7
  assert report.text().splitlines()[1:] == ["missing: scale", "unexpected: extra", "ignored: noise"]
  _, report = rules.load(*edited(scale=np.ones((1, 1), np.float32)), where="x")
  assert report.reshaped == ["scale"]


def test_positions_are_interpolated_on_request():
  found, report = rules.load(*edited(positions=np.tile(np.arange(3, dtype=np.float32)[:, None], 3)), where="x", resize=True)
  np.testing.assert_allclose(found["position"][:, 0], [0, 0.25, 0.75, 1.25, 1.75, 2], atol=1e-6)
  assert report.notices == ["positions: 3 positions were interpolated to 6"]


def test_a_table_that_does_not_fit_the_model_is_an_error():
  with pytest.raises(DataError, match="no place for other"):
    rules.bind(TABLE, {"scale": (), "other": (3,)})
  with pytest.raises(DataError, match="twice"):
    rules.bind([Rule("a", "x"), Rule("a", "y")], {"x": (), "y": ()})


def test_names_are_respelled():
  assert set(rules.renamed({"a.query.w": None, "b": None}, [(r"\.query\.", ".to_q."), ("^b$", "c")])) == {"a.to_q.w", "c"}


@pytest.mark.parametrize("dtype, size", [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_the_dtype_is_chosen(dtype, size):
  ours = leaves()
  theirs = rules.save(ours, bound(ours)[0], dtype)
  assert all(tensor.dtype.itemsize == size and tensor.read().dtype == tensor.dtype for tensor in theirs.values())
