# SPDX-License-Identifier: Apache-2.0
"""Measures both hulls on the user's own host and says which to use."""
