# SPDX-License-Identifier: Apache-2.0
"""The two hulls behind one seam: see seam.py, and the drivers in oci/ and vm/."""
