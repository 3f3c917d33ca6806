"""Reach files, the cluster and the hardware.

Open `storage` for paths and URIs, `preflight` for every refusal of a path or a cluster, `connection` to join Ray,
`cluster` to size work by what Ray has, `hardware` for device and number type, `task_guard` for bounds on a task,
`failures` for errors and how they are reported, `progress` for bars and log lines, `environment` for variables.
"""
