"""The built-in world of captioned scenes: procedural pictures whose every fact is known, so that prompt following is scored by a program."""
