"""Run an encoder: one module for each way. `inference.selection` lists them, and says how to add one."""
