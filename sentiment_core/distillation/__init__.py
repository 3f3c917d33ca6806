"""Train a student by a teacher's answers on texts without labels.

`settings` has the flags and `job` does it. `teachers` finds the teacher and its answers, `answer_file` reads answers of
someone, `parts` puts the training and the evaluation rows together, `comparison` compares student and teacher.
"""
