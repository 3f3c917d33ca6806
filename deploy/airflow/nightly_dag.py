"""Submit the nightly job to a Ray cluster, as an Airflow DAG.

Copy this file into the DAGs folder. Edit the address and the folder of this project. `ray[default]` must be installed
where the task runs. Two nights at once would do no harm; `max_active_runs` saves the second one its start. Do not rerun
a night that failed: the next one resumes.
"""

import datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    "sentiment_nightly",
    schedule="0 2 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    max_active_runs=1,
):
    BashOperator(
        task_id="nightly",
        cwd="/opt/sentiment-core",
        env={"RAY_AUTH_MODE": "token", "RAY_API_SERVER_ADDRESS": "http://ray-head.example.com:8265"},
        append_env=True,
        bash_command="ray job submit --working-dir . -- python jobs/nightly.py --config nightly.yaml",
    )
