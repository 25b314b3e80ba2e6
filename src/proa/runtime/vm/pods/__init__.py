# SPDX-License-Identifier: Apache-2.0
"""Several containers in one virtual machine: ``--isolation vm:NAME``. docs/reference/pods.md."""
