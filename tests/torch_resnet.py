"""A plain PyTorch residual network of basic blocks (arXiv 1512.03385): oracle of tests, rival of benchmarks.

torchvision's names and order of operations.
"""

from torch import nn

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    def __init__(self, C, O, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(C, O, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(O)
        self.conv2 = nn.Conv2d(O, O, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(O)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or C != O:
            self.downsample = nn.Sequential(nn.Conv2d(C, O, 1, stride, bias=False), nn.BatchNorm2d(O))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, depths=(2, 2, 2, 2), widths=(64, 128, 256, 512), num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        C = widths[0]
        self.n_stages = len(depths)
        for s, (depth, O) in enumerate(zip(depths, widths)):
            blocks = [BasicBlock(C if i == 0 else O, O, 2 if s and i == 0 else 1) for i in range(depth)]
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))
            C = O
        self.fc = nn.Linear(C, num_classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for s in range(self.n_stages):
            x = getattr(self, f"layer{s + 1}")(x)
        return self.fc(x.mean((2, 3)))
