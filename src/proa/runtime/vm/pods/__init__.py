# SPDX-License-Identifier: Apache-2.0
"""Several containers in one virtual machine: ``--isolation vm:NAME``. Decision 0044, docs/reference/pods.md."""
