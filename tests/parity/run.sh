#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh PYTHON [TESTS...]: the Engine API's tests with each hull as the daemon's default, and the table of their results.
# A test that fails is a row of the table, and fails the run at the end. TIME_FACTOR: patience with virtual machines (4).
set -uo pipefail
python=${1:?usage: run.sh PYTHON [TESTS...]}
shift
conformance=tests/conformance
tests=("$@")
[ $# -gt 0 ] || tests=(
    tests/parity
    tests/e2e/test_{run,proa,files,vm_files,volumes,health,logs,log_drivers,events,networks,options,userns}.py
    $conformance/test_{docker_cli,docker_py,aiodocker,compose,testcontainers}.py
)
status=0
[ $# -gt 0 ] || rm -f "$("$python" -c 'import sys; print(sys.prefix)')"/lib/parity/*.json
for hull in container vm; do
    factor=1
    [ $hull = container ] || factor=${TIME_FACTOR:-4}
    PROA_PARITY_HULL=$hull PROA_TEST_DAEMON_OPTIONS="--default-isolation $hull" PROA_TEST_TIME_FACTOR=$factor \
        "$python" -m pytest -q -p tests.parity.plugin "${tests[@]}" || status=$?
done
"$python" -m tests.parity.table || status=$?
exit $status
