package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/cproxy/cproxy/core/logging"
	"github.com/cproxy/cproxy/core/relay"
)

// Server is a cproxy-server: the control port, the proxy port and the public
// ports of its clients' tunnels.
type Server struct {
	options Options
	hub     *hub
	engine  *relay.Engine
}

// New checks the options; it opens and starts nothing.
func New(o Options) (*Server, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("check server options: %w", err)
	}
	if o.Policy.HandshakeTimeout == 0 {
		o.Policy.HandshakeTimeout = defaultHandshakeTimeout
	}
	room := o.room()
	s := &Server{options: o, engine: relay.New(relay.Options{Loops: o.Loops, Settings: room.settings(o.Policy.Relay)})}
	s.hub = newHub(&s.options, s.engine)
	return s, nil
}

// Run serves until ctx is done. Clients are told to come back later, streams
// end with RST, and all that was started has ended when it returns. It returns
// nil after ctx, and an error when a port cannot be opened.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	proxy, err := proxyListen(s.options.ProxyListen)
	if err != nil {
		return err
	}
	ctl, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.options.CtlListen)
	if err != nil {
		return fmt.Errorf("open the control port: %w", err)
	}

	// The engine outlives the hub, which ends first and then tells nobody.
	engineCtx, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	var engine, tasks sync.WaitGroup
	var engineErr error
	engine.Go(func() { engineErr = s.engine.Run(engineCtx) })
	s.engine.Submit(proxy)

	savePorts := s.keepPorts(ctx) // not before the control port is ours
	s.hub.site.ctl = localOf(ctl)
	s.hub.start.serving = func(at netip.AddrPort) {
		d := s.door(&tasks)
		tasks.Go(func() { d.serve(ctx, ctl) })
		tasks.Go(func() { d.tidy.run(ctx, debug.FreeOSMemory) })
		if s.options.Ready != nil {
			s.options.Ready(localOf(ctl), at)
		}
	}
	err = s.hub.run(ctx)
	cancel()
	_ = ctl.Close()
	savePorts()
	tasks.Wait()
	stopEngine()
	engine.Wait()
	if errors.Is(err, errEngineEnded) && engineErr != nil {
		err = engineErr
	}
	return err
}

// Reconfigure replaces the policy of a running server; it waits until the hub
// has taken it or ctx ends.
func (s *Server) Reconfigure(ctx context.Context, p Policy) error {
	if err := p.check(); err != nil {
		return fmt.Errorf("check policy: %w", err)
	}
	select {
	case s.hub.policies <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Server) door(tasks *sync.WaitGroup) *door {
	return &door{
		tls: s.options.TLS, authenticator: s.options.Authenticator, timeout: s.options.Policy.HandshakeTimeout,
		hub: s.hub, log: s.options.Log, failures: newFailures(), tasks: tasks,
		refusals: logging.NewRateLimited(s.options.Log, 10*time.Second, 256),
		logins:   logging.NewRateLimited(s.options.Log, 10*time.Second, maxRefusedKeys),
		slots:    make(chan struct{}, handshakeSlots),
		room:     newWaitingRoom(maxUnadmitted),
		tidy:     newTidy(),
	}
}

// proxyListening is the engine's answer about the proxy port.
func (h *hub) proxyListening(ev relay.Listening) {
	if ev.Err != nil {
		h.start.failed = fmt.Errorf("open the proxy port: %w", ev.Err)
		return
	}
	h.site.proxy = ev.Addresses[0]
	h.site.proxyAddress = h.reachable()
	h.start.serving(h.site.proxy)
}

// reachable is where clients find the proxy port: as the policy says, or beside
// the control port unless it listens elsewhere.
func (h *hub) reachable() string {
	if h.policy.ProxyAdvertise != "" {
		return h.policy.ProxyAdvertise
	}
	at := h.site.proxy
	if ip := at.Addr(); !ip.IsUnspecified() && ip != h.site.ctl.Addr() {
		return at.String() // clients would look for it beside the control port
	}
	return fmt.Sprintf(":%d", at.Port())
}

// proxyListen resolves the address of the proxy port.
func proxyListen(address string) (relay.Listen, error) {
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return relay.Listen{}, fmt.Errorf("resolve the address of the proxy port: %w", err)
	}
	ip := netip.IPv6Unspecified()
	if a.IP != nil {
		ip = a.AddrPort().Addr().Unmap()
	}
	return relay.Listen{Tunnel: proxyDoor, Binds: []netip.Addr{ip}, Ports: []uint16{uint16(a.Port)}, Route: relay.ToPreface{}}, nil
}

func localOf(ln net.Listener) netip.AddrPort {
	a, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return a.AddrPort()
}
