package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/penstock/penstock/mail/smtp"
)

// maildrop.go: the demo's backend, an SMTP server that keeps each message in a file.

type maildrop struct {
	dir  string
	last atomic.Int64
}

// startMaildrop starts it on a free loopback port.
func startMaildrop(dir string) (*smtp.Server, string, error) {
	m := &maildrop{dir: dir}
	srv, err := smtp.NewServer(smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) {
		return &dropSession{drop: m}, nil
	}), smtp.ServerOptions{Hostname: "maildrop.localhost"})
	if err != nil {
		return nil, "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	go srv.Serve(l) // ends with Shutdown, which waits for its connections
	return srv, l.Addr().String(), nil
}

type dropSession struct {
	smtp.Accept
	drop *maildrop
}

// Message writes the message to a file of its own and says which.
func (s *dropSession) Message(_ context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	name := fmt.Sprintf("%04d.eml", s.drop.last.Add(1))
	path := filepath.Join(s.drop.dir, name)
	f, err := os.CreateTemp(s.drop.dir, ".incoming-*")
	if err != nil {
		return nil, err
	}
	_, err = body.WriteTo(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	return []*smtp.Reply{{Code: 250, Enh: smtp.Enhanced{2, 0, 0}, Text: "kept as " + name}}, nil
}
