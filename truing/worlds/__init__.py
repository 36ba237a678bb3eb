"""Procedural worlds whose gold reward is known, so that every claim of the tool can be checked."""
