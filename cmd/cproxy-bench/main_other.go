//go:build !linux

// Command cproxy-bench runs on Linux only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "error: CProxy runs on Linux only; run cproxy-bench on a Linux host, a container or a virtual machine")
	os.Exit(2)
}
