"""Reach files, the cluster and the hardware.

`storage` reads and writes paths and URIs, `cluster` joins Ray, `hardware` tells device and number type,
`task_guard` bounds a task, `progress` shows how far a job is.
"""
