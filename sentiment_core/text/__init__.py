"""Turn text into token ids.

Open `preprocessing` for how texts are cleaned and cut, `tokenizer` for ids equal to those of transformers,
`token_lists` for how ids are held, `batching` for batches of them, `arrow` for texts in Arrow columns, `status` for
what came of a text, `distinct_sketch` for how many distinct texts there are.
"""
