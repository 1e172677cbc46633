// Package config turns configuration files, drop-in files, environment
// variables and command-line flags into the typed settings of the two daemons.
//
// The main entries are [LoadServer] and [LoadClient]. Layers are merged in this
// order, later ones override: built-in defaults, the main file (X.toml), the
// files X.d/*.toml beside it in lexical order, the environment, flags. Tables
// of [[tunnel]] append over layers instead.
//
// Loading never stops at the first mistake: every problem of every layer is
// collected, with file, line and key, in one [*Error]. What the loaders return
// without an error needs no further checking; a daemon never sees a raw value.
//
// [DiffServer] and [DiffClient] compare two loaded configurations and say which
// keys take effect at a reload and which need a restart. One table of keys
// (keys.go) drives defaults, bounds, unknown-key suggestions, that comparison
// and the tables in docs/configuration.md.
//
// Loading reads files and changes nothing. All functions may be called
// concurrently; loaded values are owned by the caller and are not modified
// afterwards by this package.
package config
