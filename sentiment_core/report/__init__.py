"""Draw figures and write pages for people.

`figures` draws. `html` renders the templates of all pages, which are in `templates/`. `training_report` and
`model_card` fill those of a bundle. To add a figure to a bundle's report and model card: draw it in `figures`, then add
a line to `FIGURES` in `training_report`.
"""
