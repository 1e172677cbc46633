package arrows

import "strings"

const module = "github.com/cproxy/cproxy/"

// rule says what some packages must not import. Packages of this module are
// written without the module path. A pattern is a package, or a package with
// all below it ("core/..."), or all of this module ("./...").
type rule struct {
	name   string
	reason string
	from   []string // the packages that the rule binds
	except []string // packages among from that it does not bind
	deny   []string // what they must not import; for this module, not even through others
	allow  []string // packages among deny that are allowed after all
}

// rules are the arrows of the design. Those for packages that do not exist bind
// nothing, and hold from the day the package appears.
func rules() []rule {
	leaves := []string{
		"core/wire/...", "core/frame/...", "core/record/...", "core/identity/...", "core/service/...",
		"core/retry/...", "core/logging/...", "core/config/...", "core/admin/...", "core/rate/...",
	}
	return []rule{
		{
			name:   "leaves stand alone",
			reason: "a leaf can be read, tested and reused without the rest; what it needs to know comes as a parameter",
			from:   leaves,
			deny:   []string{"./..."},
			allow:  []string{"core/rate"}, // a unit of measure: configuration and tokens must read it alike
		},
		{
			name:   "relay knows only bytes",
			reason: "the engine moves bytes between descriptors; policy, sessions and configuration reach it as commands",
			from:   []string{"core/relay/..."},
			deny:   []string{"./..."},
			allow:  []string{"core/frame", "core/record"},
		},
		{
			name:   "plugins are outsiders",
			reason: "a bundled plugin proves that the SDK suffices; it gets no private door into the daemon",
			from:   []string{"plugins/..."},
			deny:   []string{"core/...", "cmd/...", "test/..."},
		},
		{
			name:   "the SDK contract is plain values",
			reason: "a plugin author must be able to read the contract without learning a transport",
			from:   []string{"plugins/sdk"},
			deny:   []string{"./...", "github.com/...", "google.golang.org/...", "golang.org/..."},
		},
		{
			name:   "the server does not know the client",
			reason: "they share a protocol, not code; what both need is a package of its own",
			from:   []string{"core/server/..."},
			deny:   []string{"core/client/..."},
		},
		{
			name:   "the client does not know the server",
			reason: "they share a protocol, not code; what both need is a package of its own",
			from:   []string{"core/client/..."},
			deny:   []string{"core/server/..."},
		},
		{
			name:   "the core does not know its commands",
			reason: "commands wire the core together; an import back would make it unusable without them",
			from:   []string{"core/..."},
			deny:   []string{"cmd/...", "test/..."},
		},
		{
			name:   "configuration ends at the commands",
			reason: "a package that takes its own small options can be tested and reloaded without a file format",
			from:   []string{"core/..."},
			except: []string{"core/config/..."},
			deny:   []string{"core/config/..."},
		},
		{
			name:   "one package starts plugins",
			reason: "launching and supervising processes is dangerous enough to happen in one place; the SDK's glue is the other end",
			from:   []string{"./..."},
			except: []string{"core/pluginhost/...", "plugins/sdk/serve/...", "plugins/sdk/sdktest/..."},
			deny:   []string{"github.com/hashicorp/go-plugin/..."},
		},
		{
			name:   "one place parses command lines",
			reason: "exit codes, usage errors and help have one form; the core takes values",
			from:   []string{"./..."},
			except: []string{"cmd/..."},
			deny:   []string{"github.com/spf13/..."},
		},
		{
			name:   "one package loads configuration",
			reason: "the loader is strict only because all decoding goes through one decoder",
			from:   []string{"./..."},
			except: []string{"core/config/..."},
			deny:   []string{"github.com/knadh/koanf/..."},
		},
	}
}

// violations returns the imports of p that r forbids. For packages of this
// module indirect imports count too.
func (r rule) violations(p pkg) []string {
	if !matchAny(r.from, p.ImportPath) || matchAny(r.except, p.ImportPath) {
		return nil
	}
	var found []string
	check := func(path string) {
		if path != p.ImportPath && matchAny(r.deny, path) && !matchAny(r.allow, path) {
			found = append(found, path)
		}
	}
	for _, path := range p.Imports {
		if !strings.HasPrefix(path, module) {
			check(path)
		}
	}
	for _, path := range p.Deps {
		if strings.HasPrefix(path, module) {
			check(path)
		}
	}
	return found
}

func matchAny(patterns []string, path string) bool {
	for _, pattern := range patterns {
		if match(pattern, path) {
			return true
		}
	}
	return false
}

func match(pattern, path string) bool {
	if pattern == "./..." {
		return strings.HasPrefix(path, module)
	}
	if first, _, _ := strings.Cut(pattern, "/"); !strings.Contains(first, ".") {
		pattern = module + pattern
	}
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == prefix || strings.HasPrefix(path, prefix+"/")
	}
	return path == pattern
}
