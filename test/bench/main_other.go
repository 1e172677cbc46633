//go:build !linux

// Command bench runs on Linux only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "error: CProxy runs on Linux only; run make bench on a Linux host, a container or a virtual machine")
	os.Exit(2)
}
