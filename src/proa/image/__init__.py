# SPDX-License-Identifier: Apache-2.0
"""References, image configurations, archives and the content store."""
