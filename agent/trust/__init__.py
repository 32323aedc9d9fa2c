"""What may be installed on this device: pinned keys open signed manifests and assignments."""
