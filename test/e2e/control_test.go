package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
)

// wantClosed wants nobody to listen at all: a visitor who is accepted and then
// reset, even before connect returns, has met a listener.
func wantClosed(address string) error {
	c, err := net.Dial("tcp", address)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("somebody listens: %w", err)
	}
	c.Close()
	return errors.New("somebody listens")
}

// Revoking one token leaves the client of another alone.
func TestRevokeAnother(t *testing.T) {
	t.Parallel()
	w, conns := heldWorld(t, setup{})
	ctl := net.JoinHostPort(w.ip, portText(w.doors.ctl[0]))
	w.writeClient("other.toml", w.token("other", ctl), "", nil)
	other := w.startClient("other client", "other.toml")
	visitor, local := quiet(t, w, conns)
	w.run("", "cproxy-server", "token", "revoke", "other", "--config", w.path("server.toml"))
	w.log(other, 0, `refused \(credential revoked\)`)
	if _, err := io.WriteString(visitor, "still here"); err != nil {
		t.Fatal(err)
	}
	hear(t, local, "still here")
	visitor.Close()
	local.Close()
	wantRoundTripHeld(t, w, conns)
}

// A login by a second process under another name changes nothing.
func TestCheckBesideARunningClient(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	running := visit(t, w.web())
	say(t, running, "before")
	out := w.run("", "cproxy-client", "check", "--connect", "--config", w.path("client.toml"))
	if want := w.path("client.toml") + ": ok\n"; out != want {
		t.Errorf("check printed %q, want %q", out, want)
	}
	say(t, running, "after")
	if n := w.client.stderr.count(`superseded|lost the connection|ended the connection`); n > 0 {
		t.Error("a check disturbed the running client")
	}
	w.signal(w.client, syscall.SIGTERM)
	w.wantExit(w.client, 0)
}
