"""nginx as the service behind the gateway."""

from harness import HERE, free_port, kill, listens, within


class Nginx:
    """One nginx process, which can be killed and started again on the same port."""

    def __init__(self, stage, name="one", changes=None):
        self.name = name
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.folder = stage.folder / f"nginx-{name}"
        (self.folder / "files").mkdir(parents=True)
        # It may run as another user than we, and must reach its folder all the same.
        for folder in [stage.folder, self.folder, self.folder / "files"]:
            folder.chmod(0o777)
        self._stage = stage
        text = (HERE / "nginx.conf").read_text()
        for old, new in ((changes or {}) | {"HERE": self.folder, "PORT": self.port, "NAME": name}).items():
            text = text.replace(old, str(new))
        (self.folder / "nginx.conf").write_text(text)
        self.start()

    def start(self):
        self._process = self._stage.spawn("nginx", "-p", self.folder, "-c", self.folder / "nginx.conf", log=f"nginx-{self.name}.log")
        within(10, "nginx starts", lambda: listens(self.port))

    def kill(self):
        kill(self._process)
