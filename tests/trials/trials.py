"""Runs the trials, those that are named or all."""

import sys

import harness
import trial_basic
import trial_certificates
import trial_dpop
import trial_exchange
import trial_external
import trial_fleet
import trial_glewlwyd
import trial_grpc
import trial_introspection
import trial_issuer
import trial_keys
import trial_nginx
import trial_provider
import trial_reload
import trial_resource
import trial_sigv4
import trial_slow
import trial_streams
import trial_tls
import trial_tokens

sys.exit(harness.run(sys.argv[1:]))
