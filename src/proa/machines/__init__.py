# SPDX-License-Identifier: Apache-2.0
"""Full machines: any guest system in a QEMU machine of its own, apart from containers of either hull."""
