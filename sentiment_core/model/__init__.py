"""Define what is trained, saved and found again.

`classifier` puts a head on an `encoder`; `families` is what is known of encoder families. `objective` is what lies
between logits and labels. `bundle` saves a model with its `records`; `registry` says which bundle is current; `source`
opens what `--model` names.
"""
