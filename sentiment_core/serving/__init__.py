"""Serve a bundle over HTTP: a few texts at a time, with the engine that scores corpora.

`app` starts the service and has its routes, `model` turns texts into answers, `micro_batching` computes waiting
requests together, `limits` bounds what a client may send, `page.html` is the page to try it.
"""
