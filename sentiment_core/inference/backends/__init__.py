"""Run an encoder: one module for each way."""
