package e2e

import (
	"os"
	"strings"
	"testing"
)

// Grants that are edited while the client is connected open what was refused, and
// leave open what is.
func TestEditedGrants(t *testing.T) {
	t.Parallel()
	local := serve(t, "tcp", "127.0.0.1:0", echo).address
	w := newWorld(t, setup{
		grants: []string{"--ports", "21000-21099"}, unready: true,
		tunnels: []tunnel{{name: "web", local: local}, {name: "late", local: local, more: "remote_port = \"22000-22099\""}},
	})
	running := visit(t, w.web())
	say(t, running, "before")
	w.log(w.client, 0, `msg="tunnel refused; it opens by itself once the server allows it.*tunnel=late`)
	path := w.path("state/tokens.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w.write("state/tokens.toml", strings.Replace(string(text), "21000-21099", "22000-22099", 1))
	w.log(w.server, 0, `msg="grants of a connected client have changed; its open tunnels stay" client=site subject=site`)
	wantRoundTrip(t, w.address(w.client, "late"), "allowed after all")
	wantRoundTrip(t, w.web(), "an open tunnel stays")
	say(t, running, "after")
}
