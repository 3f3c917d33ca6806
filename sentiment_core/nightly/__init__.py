"""Score what is new every night, compare it with past nights, renew the model.

`settings` has the flags, `plan` chooses what to do, `job` does it. `record` keeps a night, `drift` compares it, `pages`
shows it. `lock` excludes a second run, `alert` calls people, `renewal` trains and promotes a candidate.
"""
