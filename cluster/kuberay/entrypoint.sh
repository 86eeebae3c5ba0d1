#!/bin/bash
# What the RayJob runs: a sweep, and what its end means to KubeRay.
#
#     entrypoint.sh SWEEP.yaml DIR
#
# KubeRay starts a job again that has failed, whatever its exit code. Bad input (2) fails again, and
# a sweep that has ended with a study without a usable trial (1) has nothing left to run. After these
# the job stops itself: for KubeRay it has ended (STOPPED, which is no success) and is not started
# again. All else, as interrupted (3) or killed (137), has failed and goes on in a new cluster.
set -u

anomtune sweep "$1" --address auto --dir "$2"
code=$?
if [ "$code" = 1 ] || [ "$code" = 2 ]; then
    echo "anomtune ended with exit code $code: not started again" >&2
    job=$(python3 -c 'import json, os
print(json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"])')
    # Ray ends this script while it waits; if that cannot be had, the job fails after all.
    [ -n "$job" ] && ray job stop --no-wait "$job" && sleep 60
fi
exit "$code"
