//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// maxPage is more than the page has.
const maxPage = 64 << 10

// page is the small web page that the tunnel leads to.
type page struct {
	address string // host:port
	body    string
	server  *http.Server
	served  chan struct{} // closed when the server has ended
}

// servePage serves the page on a loopback port of the kernel's choice. The page
// holds random text, so that no other can be taken for it.
func servePage() (*page, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open the port of the web page: %w", err)
	}
	p := &page{
		address: ln.Addr().String(),
		body: "<!doctype html>\n<title>CProxy demo</title>\n<h1>It works</h1>\n" +
			"<p>This page came through a tunnel. It is number " + rand.Text() + ".</p>\n",
		served: make(chan struct{}),
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(p.served)
		_ = p.server.Serve(ln) // it ends by close only; the proof shows any other end
	}()
	return p, nil
}

// ServeHTTP sends the page, whatever was asked for.
func (p *page) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, p.body) // a visitor that left does not matter
}

// compare fetches the page from address and tells whether it is this one.
func (p *page) compare(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy from the environment
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("request the page: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxPage))
	if err != nil {
		return fmt.Errorf("read the page: %w", err)
	}
	if response.StatusCode != http.StatusOK || string(body) != p.body {
		return fmt.Errorf("another page came back, with status %s:\n%s", response.Status, body)
	}
	return nil
}

// close ends the server and waits for it.
func (p *page) close() {
	_ = p.server.Close() // nothing is left to lose
	<-p.served
}
