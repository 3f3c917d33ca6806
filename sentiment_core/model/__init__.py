"""Define what is trained, saved and found again.

`classifier` puts a head on an `encoder`; `bundle` saves both with metrics and calibration; `registry` says which
bundle is current.
"""
