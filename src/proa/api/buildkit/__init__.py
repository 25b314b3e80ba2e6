# SPDX-License-Identifier: Apache-2.0
"""BuildKit's API in front of proa's own builder: sessions, control, the gateway (decision 0034)."""
