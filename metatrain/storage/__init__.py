"""Where runs are kept when that is not a disk: s3://BUCKET/FOLDER.

Reading order: `homes` (a run by its place), `mirror` (a folder that stands for it, committed whole, with one owner),
`bucket` (objects; the only file that knows boto3), `processes` (whether an owner is gone).
"""
