"""Turn text into token ids.

`tokenizer` makes the ids that transformers makes; `token_lists` holds them ragged; `batching` cuts them into batches.
"""
