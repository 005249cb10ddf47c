"""The recurrences: one entry function each, with its implementations beneath it."""
