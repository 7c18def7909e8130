package embedded

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk.go: what stands between the database and its files.
//
// The database takes a failure of its log or its list of tables for the end of the process.
// A mail gateway has better things to do: it refuses mail for a while. So the database does
// not get to see such a failure. The first one is noted, and from then on nothing that the
// database does changes the disk any more, while it is told that all is well; so it can be
// closed in peace. Whoever writes looks here after each write, and believes the disk.
//
// A sync that failed is not tried again: the kernel may have dropped what it could not write
// and say so once only. Opening the database again reads what is really there.

// disk is a vfs.FS that goes silent at the first failure to write.
type disk struct {
	vfs.FS
	failed chan struct{} // closed at the first failure
	once   sync.Once
	err    error  // set before failed is closed
	tell   func() // called at the first failure
	syncs  *atomic.Int64
}

func newDisk(fs vfs.FS, syncs *atomic.Int64, tell func()) *disk {
	return &disk{FS: fs, failed: make(chan struct{}), tell: tell, syncs: syncs}
}

// fail notes a failure and makes the disk silent.
func (d *disk) fail(err error) {
	d.once.Do(func() {
		d.err = err
		close(d.failed)
		d.tell()
	})
}

// failure returns what made the disk silent, nil while it is not.
func (d *disk) failure() error {
	select {
	case <-d.failed:
		return d.err
	default:
		return nil
	}
}

// silent tells whether nothing reaches the disk any more.
func (d *disk) silent() bool { return d.failure() != nil }

// write does something that changes the disk, unless it is silent.
func (d *disk) write(do func() error) error {
	if d.silent() {
		return nil
	}
	if err := do(); err != nil {
		d.fail(err)
	}
	return nil
}

// open makes a file to write, which leads nowhere if the disk is silent.
func (d *disk) open(do func() (vfs.File, error)) (vfs.File, error) {
	var f vfs.File
	err := d.write(func() (err error) {
		f, err = do()
		return err
	})
	if err != nil {
		return nil, err
	}
	if f == nil {
		return &file{File: vfs.NewMemFile(nil), d: d}, nil
	}
	return &file{File: f, d: d}, nil
}

func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.open(func() (vfs.File, error) {
		f, err := d.FS.Create(name, c)
		// The database syncs the folder when it made the marker that speaks of a manifest; a
		// disk that keeps no order may have the one then and not the other.
		if err == nil && strings.HasPrefix(d.FS.PathBase(name), "MANIFEST") {
			if err = syncFolder(d.FS, d.FS.PathDir(name)); err != nil {
				return nil, errors.Join(err, f.Close())
			}
		}
		return f, err
	})
}

func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return d.open(func() (vfs.File, error) { return d.FS.OpenReadWrite(name, c, o...) })
}

func (d *disk) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.open(func() (vfs.File, error) { return d.FS.ReuseForWrite(old, name, c) })
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	return d.open(func() (vfs.File, error) { return d.FS.OpenDir(name) })
}

func (d *disk) Link(old, name string) error {
	return d.write(func() error { return d.FS.Link(old, name) })
}

func (d *disk) Rename(old, name string) error {
	return d.write(func() error { return d.FS.Rename(old, name) })
}

func (d *disk) MkdirAll(dir string, perm os.FileMode) error {
	return d.write(func() error { return d.FS.MkdirAll(dir, perm) })
}

// Remove and RemoveAll change nothing that anybody relies on: what could not be removed is
// tried again at the next start.
func (d *disk) Remove(name string) error {
	if d.silent() {
		return nil
	}
	return d.FS.Remove(name)
}

func (d *disk) RemoveAll(name string) error {
	if d.silent() {
		return nil
	}
	return d.FS.RemoveAll(name)
}

// Stat knows the files that lead nowhere: the database looks whether what it made is there.
func (d *disk) Stat(name string) (vfs.FileInfo, error) {
	info, err := d.FS.Stat(name)
	if err != nil && d.silent() && errors.Is(err, fs.ErrNotExist) {
		return vfs.NewMemFile(nil).Stat()
	}
	return info, err
}

func (d *disk) Unwrap() vfs.FS { return d.FS }

// file is a file of a disk.
type file struct {
	vfs.File
	d *disk
}

func (f *file) Write(p []byte) (int, error) {
	n := len(p)
	err := f.d.write(func() (err error) {
		n, err = f.File.Write(p)
		if err == nil && n < len(p) {
			err = io.ErrShortWrite
		}
		return err
	})
	if err == nil {
		n = len(p)
	}
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	n := len(p)
	err := f.d.write(func() (err error) {
		n, err = f.File.WriteAt(p, off)
		return err
	})
	if err == nil {
		n = len(p)
	}
	return n, err
}

func (f *file) Sync() error {
	f.d.syncs.Add(1)
	return f.d.write(f.File.Sync)
}

func (f *file) SyncData() error {
	f.d.syncs.Add(1)
	return f.d.write(f.File.SyncData)
}

func (f *file) SyncTo(length int64) (full bool, err error) {
	err = f.d.write(func() (err error) {
		full, err = f.File.SyncTo(length)
		return err
	})
	return full, err
}

// Preallocate may do nothing: where it cannot, writes will tell.
func (f *file) Preallocate(off, length int64) error {
	if !f.d.silent() {
		_ = f.File.Preallocate(off, length)
	}
	return nil
}

func (f *file) Close() error {
	if err := f.File.Close(); err != nil && !f.d.silent() {
		f.d.fail(err)
	}
	return nil
}

// syncFolder makes the names in a folder safe.
func syncFolder(fs vfs.FS, name string) error {
	d, err := fs.OpenDir(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
