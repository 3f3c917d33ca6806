"""Draw figures and write pages for people: a bundle's report and model card, and the templates of all pages.

`figures` draws, `html` renders the templates in `templates/`, `training_report` and `model_card` fill two of them. To
add a figure to a bundle's report and model card: draw it in `figures`, then add a line to `FIGURES` in
`training_report`.
"""
