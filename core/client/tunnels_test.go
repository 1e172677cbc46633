package client

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

func local(name string) Tunnel {
	return Tunnel{Name: name, Network: "tcp", Address: "127.0.0.1:1"}
}

func TestRegister(t *testing.T) {
	s := newFakeServer(t)
	o := s.options(
		Tunnel{
			Name: "web", Network: "tcp", Address: "127.0.0.1:1", First: 2000, Last: 2100,
			Bind: []netip.Addr{netip.IPv6Unspecified(), netip.MustParseAddr("192.0.2.1")},
		},
		Tunnel{Name: "ssh", Network: "unix", Address: "/run/ssh.sock"},
	)
	r := start(t, o, nil)
	k := s.login().welcome(nil)
	spec := k.registers("web")
	if spec.GetType() != "tcp" || spec.GetPortFirst() != 2000 || spec.GetPortLast() != 2100 || !slices.Equal(spec.GetBind(), []string{"::", "192.0.2.1"}) {
		t.Errorf("web is registered as %v", spec)
	}
	if spec = k.registers("ssh"); spec.GetPortFirst() != 0 || spec.GetPortLast() != 0 || len(spec.GetBind()) != 0 {
		t.Errorf("ssh is registered as %v", spec)
	}
	k.accept("web", 1, "[::]:2001", "0.0.0.0:2001", "192.0.2.1:2001")
	r.shows("web 127.0.0.1:2001") // the server's host, once
	r.shows("web 192.0.2.1:2001")
	k.accept("web", 1, "[::]:2001", "192.0.2.1:2001")
	k.accept("ssh", 2, "[2001:db8::1]:22")
	r.shows("ssh [2001:db8::1]:22")
	k.accept("web", 1, "192.0.2.1:2002")
	r.shows("web 192.0.2.1:2002")
	k.accept("mail", 3, "192.0.2.1:25")
	k.closes("mail") // nobody asked for it
}

func TestReconcile(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(local("a"), local("b"), local("c")), nil)
	k := s.login().welcome(func(w *wire.Welcome) {
		// A former instance left these; what is behind the names is not known.
		w.Tunnels = []*wire.TunnelRegistered{
			{Name: "b", Id: 2, PublicAddresses: []string{"127.0.0.1:2002"}},
			{Name: "x", Id: 9, PublicAddresses: []string{"127.0.0.1:2009"}},
		}
	})
	k.closes("x")
	for i, name := range []string{"a", "b", "c"} {
		k.registers(name)
		k.accept(name, uint32(i+1), fmt.Sprintf("127.0.0.1:200%d", i+1))
		r.shows(fmt.Sprintf("%s 127.0.0.1:200%d", name, i+1))
	}
	k.drop()

	// The server lost b and gave c another port.
	k = s.login().welcome(func(w *wire.Welcome) {
		w.Resumed = true
		w.Tunnels = []*wire.TunnelRegistered{
			{Name: "a", Id: 1, PublicAddresses: []string{"127.0.0.1:2001"}},
			{Name: "c", Id: 5, PublicAddresses: []string{"127.0.0.1:2005"}},
		}
	})
	k.registers("b")
	r.shows("c 127.0.0.1:2005")
	k.quiet()
}

func TestRejectedForNow(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(local("web")), nil)
	k := s.login().welcome(nil)
	for range 3 {
		k.registers("web")
		k.reject("web", wire.CodePortTaken)
	}
	k.registers("web")
	k.accept("web", 1, "127.0.0.1:2001")
	r.shows("web 127.0.0.1:2001")
	k.quiet()
}

func TestAllRejectedForGood(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(local("a"), local("b")), nil)
	k := s.login().welcome(nil)
	k.registers("a")
	k.registers("b")
	k.reject("b", wire.CodePortNotGranted)
	k.reject("a", wire.CodePortOutOfRange)
	err := r.result()
	refused, ok := errors.AsType[*wire.RefusedError](err)
	if !ok || refused.Code() != wire.CodePortOutOfRange || !IsRefused(err) || !strings.Contains(err.Error(), "tunnel a") {
		t.Errorf("Run = %v, want the refusal of a", err)
	}
}

func TestSomeRejectedForGood(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(local("a"), local("b")), nil)
	k := s.login().welcome(nil)
	k.registers("a")
	k.registers("b")
	k.accept("a", 1, "127.0.0.1:2001")
	k.reject("b", wire.CodePortNotGranted)
	r.shows("a 127.0.0.1:2001")
	k.quiet() // b is not asked for again
	k.drop()
	k = s.login().welcome(func(w *wire.Welcome) {
		w.Resumed = true
		w.Tunnels = []*wire.TunnelRegistered{{Name: "a", Id: 1, PublicAddresses: []string{"127.0.0.1:2001"}}}
	})
	k.registers("b") // until there is a new connection
	k.reject("b", wire.CodePortNotGranted)
	k.quiet()
}

func TestReconfigureTunnels(t *testing.T) {
	s := newFakeServer(t)
	o := s.options(local("keep"), local("move"), local("drop"), local("refused"))
	r := start(t, o, nil)
	k := s.login().welcome(nil)
	for i, name := range []string{"keep", "move", "drop"} {
		k.registers(name)
		k.accept(name, uint32(i+1), fmt.Sprintf("127.0.0.1:200%d", i+1))
		r.shows(fmt.Sprintf("%s 127.0.0.1:200%d", name, i+1))
	}
	k.registers("refused")
	k.reject("refused", wire.CodePortNotGranted)
	k.quiet()

	next := o.Reloadable
	moved := local("move")
	moved.First, moved.Last = 3000, 3000
	elsewhere := local("keep")
	elsewhere.Address = "127.0.0.1:2" // the server does not hear of it
	next.Tunnels = []Tunnel{elsewhere, moved, local("refused"), local("new")}
	if err := r.Reconfigure(next); err != nil {
		t.Fatal(err)
	}
	k.closes("drop")
	if spec := k.registers("move"); spec.GetPortFirst() != 3000 {
		t.Errorf("move is registered as %v", spec)
	}
	k.registers("refused")
	k.registers("new")
	k.accept("move", 7, "127.0.0.1:3000")
	r.shows("move 127.0.0.1:3000")
	k.accept("new", 8, "127.0.0.1:2008")
	r.shows("new 127.0.0.1:2008")
	k.accept("drop", 3, "127.0.0.1:2003") // an answer that was under way
	k.closes("drop")

	// The server kept what was open, but that is not configured any more.
	moved.First, moved.Last = 80, 80
	next.Tunnels = []Tunnel{elsewhere, moved, local("new")}
	if err := r.Reconfigure(next); err != nil {
		t.Fatal(err)
	}
	k.closes("refused")
	k.registers("move")
	k.reject("move", wire.CodePortNotGranted)
	k.closes("move")
	k.quiet()
	if len(r.ended) > 0 {
		t.Errorf("Run = %v", r.result())
	}
}

// A bad configuration is refused whole.
func TestReconfigureRefused(t *testing.T) {
	s := newFakeServer(t)
	o := s.options(local("web"))
	r := start(t, o, nil)
	k := s.login().welcome(nil)
	k.registers("web")
	next := o.Reloadable
	next.Tunnels = []Tunnel{local("other"), local("other")}
	if err := r.Reconfigure(next); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("Reconfigure = %v", err)
	}
	k.quiet()
}

func TestReconfigureAccess(t *testing.T) {
	s := newFakeServer(t)
	o := s.options()
	r := start(t, o, nil)
	k := s.login().welcome(nil)
	k.quiet()
	next := o.Reloadable
	next.TokenName = "second"
	if err := r.Reconfigure(next); err != nil {
		t.Fatal(err)
	}
	r.logs.Await(t, "configuration applied")
	k.quiet() // a connection that works is left alone
	k.drop()
	k = s.login()
	if k.hello.GetCredential().GetName() != "second" {
		t.Errorf("next Hello: %v, want the second token", k.hello)
	}

	// An attempt with the old credential does not count any more.
	next.TokenName = "third"
	if err := r.Reconfigure(next); err != nil {
		t.Fatal(err)
	}
	k = s.login()
	if k.hello.GetCredential().GetName() != "third" {
		t.Errorf("next Hello: %v, want the third token", k.hello)
	}
	k.send(wire.NewGoodbye(wire.NewRefusal(wire.CodeRate, ""), time.Hour).ServerMessage())
	r.logs.Await(t, "retry_in=1h")

	// Nor is there a reason to wait any longer.
	next.TokenName = "fourth"
	if err := r.Reconfigure(next); err != nil {
		t.Fatal(err)
	}
	if k = s.login(); k.hello.GetCredential().GetName() != "fourth" {
		t.Errorf("next Hello: %v, want the fourth token", k.hello)
	}
}
