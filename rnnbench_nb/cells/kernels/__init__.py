"""Compiled loops, one Python file and one C++ source a cell."""
