package client

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// A check says that it is the proxy port, and what to do.
func TestCheckOfTheProxyPort(t *testing.T) {
	tests := []struct {
		name   string
		before func(s *fakeServer)
		answer func(t *testing.T, s *fakeServer)
		says   string
	}{
		{"closed", func(s *fakeServer) { _ = s.proxy.Close() }, nil, "proxy_listen"},
		{"silent", nil, nil, "open TCP port"},
		{"closes", nil, func(_ *testing.T, s *fakeServer) { conn, _, _ := s.proxyConn(); _ = conn.Close() }, "that of proxy_listen"},
		{"something else", nil, func(t *testing.T, s *fakeServer) {
			t.Helper()
			conn, _, _ := s.proxyConn()
			if _, err := conn.Write([]byte(strings.Repeat("HTTP/1.1 ", 9))); err != nil {
				t.Error(err)
			}
		}, "not this cproxy-server"},
		{"another server", nil, func(t *testing.T, s *fakeServer) {
			t.Helper()
			conn, p, _ := s.proxyConn()
			ready(t, conn, p, make([]byte, wire.SessionKeySize))
		}, "not this cproxy-server"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newFakeServer(t)
			o := s.options()
			o.Log = discard()
			o.Reloadable.Settings.Connect = time.Second
			c, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			if test.before != nil {
				test.before(s)
			}
			result := make(chan error, 1)
			go func() { result <- c.Check(t.Context()) }()
			k := s.login().welcome(nil)
			if test.answer != nil {
				test.answer(t, s)
			}
			if m := k.next(); m.GetGoodbye() == nil {
				t.Errorf("got %v, want Goodbye", m)
			}
			err = <-result
			if err == nil || IsRefused(err) || !strings.Contains(err.Error(), "proxy port") || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Check = %v, want %q", err, test.says)
			}
			if _, port, _ := net.SplitHostPort(s.proxy.Addr().String()); err != nil && !strings.Contains(err.Error(), port) {
				t.Errorf("Check = %v, want the port %s", err, port)
			}
		})
	}
}
