# SPDX-License-Identifier: Apache-2.0
"""Messages of the Engine API, shared by api and client."""
