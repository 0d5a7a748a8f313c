"""The built-in world of captioned scenes: pictures whose every fact is known, so that a program scores prompt following."""
