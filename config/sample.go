package config

import _ "embed"

//go:embed tidegate.toml
var sample []byte

// Sample returns the commented configuration that `tidegate init` writes. It runs unchanged and says what the defaults say.
func Sample() []byte { return append([]byte(nil), sample...) }
