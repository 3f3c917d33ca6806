# Make these files again, beside make_encoder.py. REPO: a checkout of 27de93b, whose packages `python` has.
set -eu
cd /tmp/sentiment-core-27de93b
export PYTHONPATH=$REPO
python make_encoder.py
python $REPO/jobs/train.py --data train.parquet --model encoder --out bundle --max-length 32 --lr 3e-3 --head-lr 1e-2 --epochs 12 --patience 12 --batch-size 16
python $REPO/jobs/score.py --model bundle --input input --out scored --probabilities --min-confidence 0.6
python $REPO/jobs/nightly.py --model bundle --input nightly-input --out nightly --night 2026-11-27 --workers 1
rm -f bundle/*.png bundle/*.html nightly/_nights/*.html
