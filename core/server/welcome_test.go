package server

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
)

// Clients look for the proxy port on the host where they found the control port,
// unless it listens on another one.
func TestWelcomeNamesTheProxyHost(t *testing.T) {
	for name, test := range map[string]struct{ ctl, proxy, host string }{
		"the same host":   {"127.0.0.1:0", "127.0.0.1:0", ""},
		"another host":    {"127.0.0.1:0", ownAddress().String() + ":0", ownAddress().String()},
		"every host":      {"127.0.0.1:0", ":0", ""},
		"a host of every": {"0.0.0.0:0", ownAddress().String() + ":0", ownAddress().String()},
		"every of both":   {":0", ":0", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := startServer(t, func(o *Options) { o.CtlListen, o.ProxyListen = test.ctl, test.proxy })
			r.ctl = netip.AddrPortFrom(loopback, r.ctl.Port())
			p := r.dial().login()
			if want := net.JoinHostPort(test.host, fmt.Sprint(r.proxy.Port())); p.welcome.GetProxyAddress() != want {
				t.Errorf("the proxy port is said to be at %q, want %q", p.welcome.GetProxyAddress(), want)
			}
		})
	}
}

// What the policy advertises is told, after a reload too.
func TestAdvertisedProxyAddress(t *testing.T) {
	policy := testPolicy()
	policy.ProxyAdvertise = "data.example.net:9001"
	r := startServer(t, func(o *Options) { o.Policy = policy })
	first := r.dial().login()
	if got := first.welcome.GetProxyAddress(); got != policy.ProxyAdvertise {
		t.Errorf("the proxy port is said to be at %q", got)
	}
	policy.ProxyAdvertise = ""
	if err := r.Reconfigure(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	second := r.dial()
	second.name = "other"
	second.login()
	if _, port, err := net.SplitHostPort(second.welcome.GetProxyAddress()); err != nil || port != fmt.Sprint(r.proxy.Port()) {
		t.Errorf("after the reload at %q, and is %v", second.welcome.GetProxyAddress(), r.proxy)
	}
}
