//go:build unix

package delivery

import (
	"net"
	"syscall"
)

// peeker looks whether a connection has something to read, without reading it. It
// costs one system call. With TLS what it sees is ciphertext: anything at all is
// unexpected on an idle connection, and most likely its close_notify.
type peeker struct {
	raw  syscall.RawConn
	look func(fd uintptr) // made once, so that a look allocates nothing
	calm bool
	buf  [1]byte
}

// newPeeker returns nil if nc is not a socket.
func newPeeker(nc net.Conn) *peeker {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	p := &peeker{raw: raw}
	p.look = func(fd uintptr) {
		for {
			// Go's sockets are non-blocking, MSG_PEEK alone does not wait.
			_, _, err := syscall.Recvfrom(int(fd), p.buf[:], syscall.MSG_PEEK)
			if err == syscall.EINTR {
				continue
			}
			p.calm = err == syscall.EAGAIN || err == syscall.EWOULDBLOCK
			return
		}
	}
	return p
}

// quiet tells whether the peer has neither sent anything nor closed. It uses Control,
// not Read, since a read deadline that has passed meanwhile does not matter to it.
func (p *peeker) quiet() bool {
	p.calm = false
	return p.raw.Control(p.look) == nil && p.calm
}
