"""Score what is new every night, compare it with past nights, renew the model.

`job` runs a night, `record` keeps it, `drift` compares it, `pages` shows it.
"""
