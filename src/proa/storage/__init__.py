# SPDX-License-Identifier: Apache-2.0
"""Places layers as EROFS files, makes root file systems of them, and keeps volumes."""
