# SPDX-License-Identifier: Apache-2.0
"""The messages of BuildKit's services; generated."""
